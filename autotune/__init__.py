"""sparsec.autotune"""
