"""The grid of networks and losses, its jobs and its results."""
