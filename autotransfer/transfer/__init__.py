"""Transfer: surgery, training, evaluation and export of one transfer configuration."""
