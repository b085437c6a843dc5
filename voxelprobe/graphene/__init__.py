"""The chunked graph of a proofread data set: its addresses, its ids, and its server.

Facts: the server's source (github.com/CAVEconnectome/PyChunkedGraph, `app/segmentation`) and
CloudVolume's `datasource/graphene`, held against servers of version 2 and 3.
"""
