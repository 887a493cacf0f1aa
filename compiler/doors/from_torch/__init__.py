"""The torch door: a module, an exported program or one of Dynamo's graphs becomes one CAPTURED graph."""
