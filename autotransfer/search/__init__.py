"""The search: an Optuna study over sources, levels and hyperparameters, steered by proxies."""
