"""Operations as pure state machines: what is recorded, what was seen, and what to do next. No I/O."""
