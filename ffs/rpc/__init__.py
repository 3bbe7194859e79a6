"""Request and reply between processes: one sans-IO codec, a blocking and an asyncio driver.

schema.py turns message types into encoders and decoders, codec.py frames them, blocking.py is the
client's driver, aio.py has the server and the asyncio client. docs/wire.md has the bytes.
"""
