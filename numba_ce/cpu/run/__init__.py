"""From a described call to threads."""
