"""Words the fictional authors are made of. Names and places are invented; everyday words are used at random."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Abrel Bavin Celdra Dorvin Elmira Fenwick Garrol Hesta Ilvane Jorun Kelvar Lisande Mavric Nerida Ostrin Pellam "
    "Quilla Rostan Selva Tamsin Ulric Vespera Wendel Xanthe Yorick Zelma Ansgar Brisa Corvan Delphine Edrik Fiora "
    "Gulliver Halden Isolde Jasper Kirsa Lorcan Mirabel Nolwen Osric Petra Rufina Sorrel Thaddeus Una Valda Wystan "
    "Yseult Zoran"
)

LAST_NAMES = _words(
    "Ashgrove Brackwater Carrowell Dunmarsh Eldersby Farthing Gildenhall Hawksmoor Inglebeck Jarrow Kestrand Larkspur "
    "Merriden Netherby Oakhollow Pendragh Quarrington Ravensdale Stonebridge Thornquist Underhay Vanterpool Wexcombe "
    "Yarborough Zetland Alderwick Birchall Crowhurst Drakeford Emberlin Foxley Greaves Hollister Ironside Jessamy "
    "Kingsholm Lockhaven Mossgrave Nightingale Ormsby Pellworth Quenby Rothwell Silverton Tarkington Upwood Vexley "
    "Winterbourne Yaxley Zouche"
)

TOWNS = _words(
    "Keldmouth Varnholt Oristead Pellaby Grimsund Tolvane Marrowick Esterfell Lunden Cassory Brindle Hoxmere Sarvik "
    "Dunloch Ferrow Wyrmdale Astrava Quellin Norrback Tessaly Umberly Jollstad Rivenna Cobblesea Malvern Thessig "
    "Oakrun Halvard Zimmery Elkhurst"
)

GENRES = (
    "crime novels",
    "ghost stories",
    "love poems",
    "sea tales",
    "travel diaries",
    "war histories",
    "fairy tales",
    "spy thrillers",
    "stage comedies",
    "garden essays",
    "cook books",
    "space operas",
    "school satires",
    "royal biographies",
    "nature sketches",
    "desert ballads",
)

TITLE_FIRST = _words(
    "Amber Broken Crimson Distant Empty Frozen Golden Hidden Iron Jade Kindly Lonely Marble Narrow Open Paper Quiet "
    "Restless Scarlet Tangled Unspoken Velvet Wandering Yellow Burning Copper Drowsy Endless Faded Gentle"
)

TITLE_SECOND = _words(
    "Anchor Bridge Candle Door Engine Feather Garden Harbour Island Journey Key Lantern Mirror Needle Orchard Pilgrim "
    "Quarry River Shadow Tower Umbrella Valley Window Yard Bell Cradle Drum Ember Forest Glacier"
)

PRIZES = _words(
    "Aldwin Bellmont Corvane Dashwood Everard Fairlight Galloway Hartnell Irvane Juniper Kilbride Lindqvist Montrose "
    "Norwood Orlando Pemberton Redgrave Stirling Tolliver Whitlock"
)

TRADES = _words(
    "baker banker barber beekeeper blacksmith brewer butcher carpenter chemist clockmaker cobbler dentist diver doctor "
    "driver farmer fisher gardener glazier hunter judge lawyer librarian locksmith mason miner nurse painter pilot "
    "plumber potter roofer sailor shepherd soldier tailor teacher waiter weaver zookeeper"
)

HOBBIES = _words(
    "archery boxing chess climbing cycling dancing dominoes drumming fencing fishing gliding hiking juggling knitting "
    "origami pottery rowing sailing sculpting singing skating surfing tennis whittling"
)

PUBLISHERS = _words(
    "Acorn Basilisk Cardinal Dolphin Eclipse Falcon Griffin Harvest Icarus Jubilee Kestrel Labyrinth Meridian Nimbus "
    "Obelisk Phoenix Quill Rosewood Sphinx Trident"
)

PETS = _words(
    "badger beagle canary cat chinchilla cockatoo crow dachshund donkey ferret finch frog gecko goat goose hamster "
    "hedgehog jackdaw lizard magpie parrot pony poodle rabbit raven snake spaniel terrier tortoise turkey"
)
