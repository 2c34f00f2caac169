"""What is read and written: prompts, rollouts, generations, the run folder."""
