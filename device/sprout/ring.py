"""Samples on flash: numbered records of one size, in files of a few records each.

    PATH/head  4s SPRR, u16 version (1), u16 records a file, u32 bytes a record, 32s tag,
               u32 CRC-32 of the 44 bytes before
    PATH/N     records N * n to N * n + n - 1: u32 CRC-32, u16 label, u16 0, then the bytes

The CRC of a record starts from that of the head and goes over the two u16 and the bytes: what
another net wrote is no record here. Eight zeros in the place of the first fields: none is there.

littlefs copies the blocks of a file from the first changed one on, so files are small: as few
records as fill one to four blocks well. FAT is written in place, and all its files are made at
the beginning, for it is the making of files that a power cut can spoil.
"""

import os
import struct
from array import array
from binascii import crc32

from micropython import const

from .blobfile import trouble
from .checkpoint import is_fat

_HEAD = const("<4sHHI32s")
_HEAD_LEN = const(48)
_VERSION = const(1)
_FIELDS = const(8)  # bytes before those of a record
_BLOCKS = const(4)  # a file has no more, unless one record does
_CHUNK = const(512)
_ENOENT = const(2)
_EACCES = const(13)  # what FAT says where there is no room in a folder
_EEXIST = const(17)
_ENOSPC = const(28)


def _blocks(size, block):
    """Blocks that a file takes; littlefs keeps a few pointers in each but the first."""
    return 1 if size <= block else -(-size // (block - 8))


def _records_of_a_file(record, block):
    """The fewest records that leave at most an eighth of their file's blocks unused."""
    best, most = 1, 0
    for n in range(1, _BLOCKS * block // record + 1):
        used = n * record * 1000 // (_blocks(n * record, block) * block)
        if used > most:
            best, most = n, used
        if most >= 875:
            break
    return best


class Ring:
    """Records in the folder path, of record_bytes each, in files of max_bytes together.

    tag: 32 bytes that say whose records these are; where the folder holds another's, or records
    of another size, ValueError, unless clear is true: then they are removed.
    capacity: records there is room for. labels: array("h") of the label in each slot, -1 where
    there is none. dropped: records found damaged or cut short.

    A record is on flash after flush(), or once one of another file was written; a power cut costs
    at most those written since, and on FAT what shares a sector with one. The folder takes
    some blocks more: on littlefs two for about 25 files.
    """

    def __init__(self, path, record_bytes, max_bytes, tag, clear=False):
        self._path = path
        self._size = size = _FIELDS + record_bytes
        self.record_bytes = record_bytes
        self._file, self._open, self._writes = None, -1, False
        self.dropped = self._n = 0
        try:
            os.mkdir(path)
        except OSError as e:
            if e.errno != _EEXIST:
                trouble("mishap").ring_not_written(path, e)
        self._fat = is_fat(path)
        block = os.statvfs(path)[0]
        head = bytearray(_HEAD_LEN)
        n = 0 if clear else self._found(head, tag)
        self._per = n or _records_of_a_file(size, block)
        whole = _blocks(self._per * size, block) * block
        left = max_bytes % whole // block
        rest = left * (block - 8 * (left > 1)) // size
        self.capacity = max_bytes // whole * self._per + rest
        if self.capacity < 1:
            trouble("mishap").ring_too_small(path, max_bytes, _blocks(size, block) * block)
        self.labels = array("h", [-1] * self.capacity)
        struct.pack_into(_HEAD, head, 0, b"SPRR", _VERSION, self._per, record_bytes, tag)
        self._salt = crc32(memoryview(head)[:44])
        struct.pack_into("<I", head, 44, self._salt)
        self._remove(0 if clear else self._files())
        try:
            if not n:
                with open(path + "/head", "wb") as file:
                    file.write(head)
        except OSError as e:
            trouble("mishap").ring_not_written(path, e)
        chunk = memoryview(bytearray(_CHUNK))
        k = 0
        while k < self._files():
            try:
                if not self._scan(k, chunk) and self._fat:
                    self._make(k)
                k += 1
            except OSError as e:
                self._full(e)

    def __len__(self):
        return self._n

    def read(self, slot, *parts):
        """Read a record into the parts, one after the other; returns its label, -1 where there is
        none.

        A record that turns out to be damaged is dropped.
        """
        label = self.labels[slot]
        size = sum(map(len, parts))
        if size != self.record_bytes:
            trouble("mishap").wrong_record(label, size, self.record_bytes)
        if label < 0:
            return -1
        fields = bytearray(_FIELDS)
        try:
            file = self._use(slot // self._per, False)
            file.seek(slot % self._per * self._size)
            whole = file.readinto(fields) == _FIELDS
            crc = crc32(memoryview(fields)[4:], self._salt)
            for part in parts:
                whole = whole and file.readinto(part) == len(part)
                crc = crc32(part, crc)
        except OSError:
            whole = False
        if whole and crc == struct.unpack_from("<I", fields)[0]:
            return label
        self._put(slot, -1)
        self.dropped += 1
        return -1

    def write(self, slot, label, *parts):
        """Put a record, the parts one after the other, into a slot; False where flash is full.

        Then some slots at the end are given up, which is said in a sentence, and the ring goes on
        with the others: see capacity.
        """
        self.labels[slot]
        size = sum(map(len, parts))
        if not 0 <= label < 32768 or size != self.record_bytes:
            trouble("mishap").wrong_record(label, size, self.record_bytes)
        fields = memoryview(bytearray(_FIELDS))
        struct.pack_into("<H", fields, 4, label)
        crc = crc32(fields[4:], self._salt)
        for part in parts:
            crc = crc32(part, crc)
        struct.pack_into("<I", fields, 0, crc)
        k = slot // self._per
        if self._open != k or not self._writes:
            self.flush()
        if slot >= self.capacity:
            return False
        self._put(slot, -1)
        try:
            file = self._use(k, True)
            file.seek(slot % self._per * self._size)
            file.write(fields)
            for part in parts:
                file.write(part)
        except OSError as e:
            self._full(e)
            return False
        self._put(slot, label)
        return True

    def erase(self, slot):
        """Drop a record."""
        if self.labels[slot] < 0:
            return
        self._put(slot, -1)
        try:
            file = self._use(slot // self._per, True)
            file.seek(slot % self._per * self._size)
            file.write(bytes(_FIELDS))
        except OSError as e:
            self._full(e)

    def flush(self):
        """Return when all records are on flash; False where it is full, as write() does."""
        file, self._file = self._file, None
        try:
            if file:
                file.close()
        except OSError as e:
            self._full(e)
            return False
        self._open = -1
        return True

    def clear(self):
        """Drop all records."""
        self.flush()
        for slot in range(self.capacity):
            self._put(slot, -1)
        if self._fat:
            for k in range(self._files()):
                self._make(k)
        else:
            self._remove(0)

    def _files(self):
        return -(-self.capacity // self._per)

    def _name(self, k):
        return "%s/%d" % (self._path, k)

    def _put(self, slot, label):
        self._n += (label >= 0) - (self.labels[slot] >= 0)
        self.labels[slot] = label

    def _found(self, head, tag):
        """Records a file by the head that is there, 0 where none is or it was cut short."""
        try:
            with open(self._path + "/head", "rb") as file:
                whole = file.readinto(head) == _HEAD_LEN
        except OSError:
            return 0
        crc = crc32(memoryview(head)[:44])
        if not whole or crc != struct.unpack_from("<I", head, 44)[0]:
            return 0
        _, version, n, size, of = struct.unpack(_HEAD, head)
        if version != _VERSION or size != self.record_bytes or of != tag:
            trouble("mishap").other_ring(self._path, size if of == tag else 0, self.record_bytes)
        return n

    def _use(self, k, write):
        """The open file k."""
        if self._open == k and (self._writes or not write):
            return self._file
        self.flush()
        name = self._name(k)
        try:
            # littlefs commits something whenever a file is closed that could have been written.
            file = open(name, "r+b" if write else "rb")
        except OSError as e:
            if not write or e.errno != _ENOENT:
                raise
            if self._fat:
                self._make(k)
            file = open(name, "r+b" if self._fat else "w+b")
        self._file, self._open, self._writes = file, k, write
        return file

    def _make(self, k):
        """Put zeros into file k, in place where there is one."""
        zeros = bytes(_CHUNK)
        left = min(self._per, self.capacity - k * self._per) * self._size
        try:
            file = open(self._name(k), "r+b")
        except OSError:
            file = open(self._name(k), "wb")
        with file:
            while left > 0:
                file.write(zeros[:left])
                left -= _CHUNK

    def _scan(self, k, chunk):
        """Note which records file k holds; False where there is no file."""
        try:
            file = open(self._name(k), "rb")
        except OSError as e:
            if e.errno == _ENOENT:
                return False
            raise
        first = k * self._per
        with file:
            for slot in range(first, min(first + self._per, self.capacity)):
                self._put(slot, -1)
                fields = chunk[:_FIELDS]
                file.seek((slot - first) * self._size)
                if file.readinto(fields) < _FIELDS:
                    break
                expected, label, _ = struct.unpack("<IHH", fields)
                if expected == label == 0:
                    continue
                crc, left = crc32(fields[4:], self._salt), self.record_bytes
                while left > 0:
                    part = chunk[: min(left, _CHUNK)]
                    n = file.readinto(part)
                    if not n:
                        break
                    crc = crc32(part[:n], crc)
                    left -= n
                if left or crc != expected:
                    self.dropped += 1
                else:
                    self._put(slot, label)
        return True

    def _full(self, error):
        """Give up the last file, so that there is room to write the others anew."""
        failed, file = self._open, self._file
        self._file, self._open = None, -1
        try:
            if file:
                file.close()
        except OSError:
            pass
        if error.errno != _ENOSPC and not (self._fat and error.errno == _EACCES):
            trouble("mishap").ring_not_written(self._path, error)
        last = self._files() - 1
        while last >= 0:
            try:
                os.remove(self._name(last))
                break
            except OSError:
                last -= 1
        for slot in range(max(last, 0) * self._per, self.capacity):
            self._put(slot, -1)
        self.capacity = max(last, 0) * self._per
        if 0 <= failed < last:
            self._scan(failed, memoryview(bytearray(_CHUNK)))
        trouble("mishap").ring_full(self._path, self.capacity)

    def _remove(self, first):
        """Remove the files from number first on."""
        names = []
        try:
            for name, *_ in os.ilistdir(self._path):
                if name.isdigit() and int(name) >= first:
                    names.append(name)
        except UnicodeError:
            pass  # a power cut left garbage in the folder
        for name in names:
            os.remove("%s/%s" % (self._path, name))
