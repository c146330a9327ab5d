"""asv suite and the scripts that make the published tables."""
