"""The libraries of the scoreboard, one file each, and the scenarios that all of them run."""
