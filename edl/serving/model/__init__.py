"""Models: their files, their descriptions, predictors, export. The only place that runs Paddle."""
