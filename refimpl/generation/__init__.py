"""From a prompt to new tokens: settings, the choice of each token, the loop, and streaming."""
