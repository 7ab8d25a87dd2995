"""Search: Optuna studies over the same runs that ablations use, stopped early where that pays."""
