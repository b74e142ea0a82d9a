"""What a machine can do: probe, roofline, predictors."""
