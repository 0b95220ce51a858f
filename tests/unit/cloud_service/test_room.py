"""Which batches are tried after one found no room."""

from __future__ import annotations

from cloud_service.room import CAREFUL_SECONDS, Room

NOW = 1000.0


def test_a_batch_that_found_no_room_is_halved_until_one_fits() -> None:
    room = Room(16)
    assert room.limit("small", NOW) == 16
    for failed, then in ((16, 8), (8, 4), (5, 2), (2, 1), (1, 1)):
        room.too_small("small", failed, NOW)
        assert room.limit("small", NOW) == then


def test_other_kinds_of_batches_keep_their_size() -> None:
    room = Room(16)
    room.too_small("large", 4, NOW)
    assert (room.limit("large", NOW), room.limit("small", NOW)) == (2, 16)


def test_after_a_minute_the_whole_size_is_tried_again() -> None:
    room = Room(16)
    room.too_small("large", 4, NOW)
    assert room.limit("large", NOW + CAREFUL_SECONDS - 1) == 2
    assert room.limit("large", NOW + CAREFUL_SECONDS) == 16


def test_kinds_that_clients_chose_are_not_kept_for_ever() -> None:
    room = Room(16)
    for count in range(1000):
        room.too_small(count, 4, NOW + count)
    assert len(room._careful) <= CAREFUL_SECONDS + 1
