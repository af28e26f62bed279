"""Models, text and perplexity: what a trial starts from and what it is measured by."""
