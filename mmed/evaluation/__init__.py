"""From model output to scores: answer parser, results, summary, comparison, leaderboard files, BERTScore,
API client.
"""
