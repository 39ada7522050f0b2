"""Cross-validation: a fold is an adapter, and all folds, repeats, seeds, shares and ablations train at once."""
