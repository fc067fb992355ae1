"""Training slice by slice while the policy is sampled, with weights synced in between."""
