"""The pruning papers on small data: tasks, models, evaluations, and the tables and pictures of their results."""
