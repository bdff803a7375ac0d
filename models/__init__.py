"""Networks, the one training loop, the bundle, the predictor, the metrics."""
