"""The places that talk to gRPC, one for threads and one for asyncio."""
