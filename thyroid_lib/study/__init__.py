"""The study as a run: notebooks, profiles, reports, references."""
