"""From a manifest to crops on disk, and the audit of what they hold."""
