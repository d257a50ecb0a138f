"""The only home of NATS: what moves is stored, read, pulled and asked for here."""
