"""The trainer, its iterations, and distillation."""
