"""What the process of every service is: ports, health, metrics, TLS, token, logs, signals (docs/adr/0010)."""
