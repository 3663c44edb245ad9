"""What is done with each API that is not simply forwarded: one module a family of APIs.

Every module exports `HANDLERS: dict[int, Handler]`. A handler gets the decoded request and returns the decoded
response; it decides, and asks brokers only through its `Call`. See `contract`.
"""
