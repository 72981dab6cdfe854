"""What a training run keeps on disk until its pair is written."""
