"""`quire bench serve`: load on a server that speaks OpenAI's API, and what its clients feel. Needs no engine, no torch and no GPU."""
