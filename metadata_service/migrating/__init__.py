"""Migrations carried out: facts gathered from the store and the brokers, commands sent, by the rules in
docs/design/moving.md. `metadata_service.operations` decides; nothing is decided here."""
