"""What data and beliefs say of variants: comparison, sample-ratio check, priors."""
