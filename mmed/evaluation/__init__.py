"""From what a model wrote to scores: answer parser, results, summary, comparison, leaderboard files,
BERTScore, API client.
"""
