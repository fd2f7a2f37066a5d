"""One call to a server: its steps, retries, deadline, messages and checks, without any waiting."""
