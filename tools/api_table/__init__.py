"""Writes docs/reference/api-table.md from kafka_wire.api_table and kafka_wire.roles."""
