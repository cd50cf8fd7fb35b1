"""What the reading commands are made of: web pages, books, sites, Wikipedia dumps."""
