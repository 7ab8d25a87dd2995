"""Search: Optuna studies over the same runs that ablations use, with early stopping."""
