"""Many inputs, many steps: shards, recipes, plans, clusters."""
