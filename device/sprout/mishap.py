"""What to say when checkpoints or kept samples come to grief: gone when it is said."""


def not_written(path, error, size):
    """Say what a checkpoint needs."""
    message = "%s cannot be written (%s): make %d bytes of room"
    raise OSError(message % (path, error, size)) from None


def other_blob(path, of, name):
    """Say that a checkpoint belongs elsewhere."""
    text = "%s belongs to another blob (%s), not to this %s: load that one to restore it"
    raise ValueError(text % (path, of, name))


def no_checkpoint(path, number, kind, slot):
    """Say why there is nothing to restore; kinds are those of checkpoint.py."""
    if kind == 0:
        raise OSError("%s holds no checkpoint: net.save() writes one" % path)
    if kind == 1:
        raise ValueError("%s is not a checkpoint: give a file that save() wrote" % slot)
    if kind == 2:
        text = "%s is of checkpoint version %d and this package reads 2: use the release that "
        raise ValueError((text + "wrote it") % (slot, number))
    raise ValueError("%s is damaged or cut short: restore another one" % slot)


def fell_back(slot, step):
    """Say that an older checkpoint had to do."""
    text = "%s is damaged or was cut short: this is the checkpoint before it, of step %d"
    print(text % (slot, step))


def not_kept(slot):
    """Say that flash did not keep what was written."""
    text = "%s reads back otherwise than it was written: the checkpoint before it is whole, save "
    raise OSError(text % slot + "to another path or replace the flash")


def ring_not_written(path, error):
    """Say that a ring's folder cannot be used."""
    text = "%s cannot hold samples (%s): give a folder on a file system that can be written"
    raise OSError(text % (path, error)) from None


def ring_too_small(path, size, least):
    """Say what one sample takes."""
    text = "%s cannot hold one sample in %d bytes: give it at least %d"
    raise ValueError(text % (path, size, least))


def other_ring(path, found, size):
    """Say that a ring belongs elsewhere; found: bytes of its samples where only they differ."""
    what = "samples of %d bytes, not %d" % (found, size) if found else "samples of another net"
    raise ValueError("%s holds %s: give another folder, or clear=True to drop them" % (path, what))


def wrong_record(label, size, expected):
    """Say what a sample in a ring is."""
    text = "a sample of this ring has %d bytes and a label from 0 to 32767, not %d and %s"
    raise ValueError(text % (expected, size, label))


def ring_full(path, capacity):
    """Say that a ring has become smaller."""
    print("the flash is full: %s goes on with room for %d samples" % (path, capacity))


def replay_too_small(form, size, least):
    """Say what a replay buffer holds at least."""
    text = "replay of %d bytes holds no %s sample: give it %d or more, or another form"
    raise ValueError(text % (size, form, least))


def no_ram_for_replay(size, free):
    """Say how much RAM there is for a replay buffer."""
    text = "replay needs %d bytes of RAM and about %d are free: give it fewer, or a path on flash"
    raise MemoryError(text % (size, free))


def nothing_to_rehearse():
    """Say where kept samples come from."""
    raise ValueError("no sample is kept: call net.replay(), then learn() some or give its path")


def not_between_rows(row):
    """Say when a net that takes rows can rehearse."""
    text = "%d rows of a frame are there: feed() the others and use it before rehearse()"
    raise ValueError(text % row)


def no_raw_rows(name):
    """Say why there are no frames to keep."""
    text = "%s takes frames by rows and never has a whole one: keep form='latent' instead of 'raw'"
    raise ValueError(text % name)


def no_latents(name):
    """Say that a blob is too old for latent replay."""
    raise ValueError("%s does not say what to keep for replay: compile it again" % name)


def same_on_flash(first, second):
    """Say that two classes cannot be told apart on flash."""
    text = "replay on flash cannot tell %r from %r: load() with another name for one of them"
    raise ValueError(text % (first, second))
