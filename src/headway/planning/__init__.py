"""Planners: a problem file to a plan that is measured or simulated before anybody pays for it."""
