"""What people call: listens to the trainer, and is the only place that acts."""
