"""The main path: load, measure, propose, predict, apply, measure, keep, prove, save."""
