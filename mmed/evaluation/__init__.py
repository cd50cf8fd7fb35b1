"""From model output to scores: answer parser, results, comparison, leaderboard files, BERTScore, API."""
