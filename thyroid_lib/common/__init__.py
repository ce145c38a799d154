"""What every room writes, says and counts with: files, fingerprints, messages, progress, jobs."""
