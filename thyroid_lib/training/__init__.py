"""Pre-training and fine-tuning: settings, loop, checkpoints, folds."""
