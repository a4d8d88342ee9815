"""Measures whether images chosen by a detector's margins are worth more labels than random ones."""
