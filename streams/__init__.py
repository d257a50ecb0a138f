"""What moves through Penstock and how: subjects, records, the ledger, the NATS link, media in."""
