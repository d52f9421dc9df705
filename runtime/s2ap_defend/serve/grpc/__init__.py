"""The server over gRPC: inference.GRPCInferenceService and grpc.health.v1. Needs the extra [grpc]."""
