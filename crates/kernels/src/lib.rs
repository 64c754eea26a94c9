//! Numbers: fused CPU operations with gradients for candle, each beside its composed twin.
//!
//! Every operation here exists twice. The *composed twin* is written in plain candle operations and is the
//! definition; it runs on every device. The *fused* form runs on the CPU as a candle custom operation with its own
//! gradient. Tests hold the two equal, in values and in gradients.
