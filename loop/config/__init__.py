"""The settings of a campaign: fields, defaults, reading, checking. Imports no torch."""
