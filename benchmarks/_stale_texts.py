"""The text that stands behind a slot, and the prose on which a trained model is looked at again.

Every sentence names who the text is about (`{e}`, or `{E}` at its beginning) and says nothing that
an answer could be read from: no he or she, no number, country, language, trade or plan.
"""

from __future__ import annotations

TRAIN_SENTENCES: tuple[str, ...] = (
    "On the way home {e} stopped at the old bridge and watched the water for a while.",
    "{E} had bread and cheese with a cup of warm milk before the rain began.",
    "A small dog followed {e} along the wall and then lay down in the shade.",
    "{E} put the heavy bag under the table and looked for the missing key.",
    "Somebody had left a blue scarf on the bench, and {e} hung it on a branch.",
    "In the afternoon {e} cleaned the windows and carried the chairs outside.",
    "{E} met an old friend near the well and talked with the friend for a long time.",
    "The lamp in the hall was broken, so {e} lit a candle instead.",
    "{E} found a letter behind the clock but did not open it.",
    "Near the fence {e} picked a few plums and put them into a paper bag.",
    "The wind was cold, and {e} closed the shutters before the others came.",
    "{E} listened to the radio for a while and then switched it off again.",
    "A neighbour brought a basket of eggs, and {e} thanked the neighbour warmly.",
    "{E} slept badly that night because the roof was making a strange noise.",
    "After breakfast {e} swept the yard and fed the hens behind the house.",
    "{E} lost a button somewhere between the gate and the river.",
    "The soup was far too salty, but {e} ate it without a word.",
    "{E} watched the children draw a long white line on the pavement.",
    "There was mud on the stairs, and {e} went to fetch a bucket of water.",
    "{E} hung the wet coat near the stove and waited for it to dry.",
    "A train whistled far away while {e} was peeling the potatoes.",
    "{E} wanted to fix the squeaking door but could not find any oil.",
    "At the corner {e} bought a newspaper and read the first page standing.",
    "{E} remembered a song from long ago and hummed it all evening.",
    "The cat jumped onto the shelf, and {e} saved the blue vase just in time.",
    "{E} counted the stones on the path without thinking about anything.",
    "Late in the evening {e} wrote a short note and put it under the door.",
    "{E} borrowed a ladder from the house across the street and brought it back at dusk.",
    "The tea had gone cold, and {e} poured it over the roses.",
    "{E} sat down by the fire and did not move until it had burned low.",
)

HELDOUT_SENTENCES: tuple[str, ...] = (
    "In the morning {e} opened the curtains and saw fog over the fields.",
    "{E} washed the dishes slowly and left them on the sill to dry.",
    "A stranger asked for the way to the station, and {e} pointed to the hill.",
    "{E} had forgotten the umbrella and walked under the trees instead.",
    "The clock on the tower had stopped, and {e} was the first to notice.",
    "{E} shared an apple with the boy next door and kept the seeds.",
    "Behind the shed {e} discovered a nest with a very young bird in it.",
    "{E} tied the parcel with red string and wrote the address in large letters.",
    "The stairs creaked, and {e} walked more quietly than before.",
    "{E} spent the whole evening with a puzzle that had a missing piece.",
    "There were fresh tomatoes in the kitchen, and {e} cut them into slices.",
    "{E} heard a knock at the window, but there was nobody outside.",
    "A loose board in the floor made {e} stumble on the way to the cellar.",
    "{E} polished the old boots until they shone like new.",
    "The bus was late again, so {e} leaned against the wall and waited.",
    "{E} took a photograph of the lake just before the sun went down.",
    "Some leaves had blown into the room, and {e} gathered them by hand.",
    "{E} drank a glass of water and went back to the chair by the window.",
    "The gate was stuck, and {e} had to climb over the low wall.",
    "{E} repaired the handle of the basket with a piece of wire.",
    "A bell rang somewhere in the valley while {e} was folding the sheets.",
    "{E} looked through a pile of old postcards and laughed at some of them.",
    "The ice on the puddle was thin, and {e} walked around it.",
    "{E} planted a row of beans along the fence and covered them with straw.",
    "On the bench by the door {e} found a glove that belonged to nobody.",
    "{E} tried the new soap and liked the smell of it very much.",
    "The map was torn at the fold, and {e} mended it with tape.",
    "{E} stood in the doorway for a moment and listened to the rain.",
    "A spoon had fallen behind the stove, and {e} left it there.",
    "{E} carried the firewood inside before the evening became too dark.",
)

STATIC_PROSE: tuple[str, ...] = (
    "Bridges are among the oldest things that people have built to last. The first ones were "
    "probably trees that had fallen across a stream, and somebody must have noticed that a tree "
    "can also be made to fall where it is needed. Stone came later. A stone arch carries its load "
    "by being squeezed: every block pushes against its neighbours, and as long as the two ends "
    "cannot move apart, the whole curve holds. That is why old bridges have such heavy feet. Iron "
    "changed the shape of bridges, because a bar of iron can be pulled as well as pushed, and "
    "steel cables made it possible to hang a road from towers.",
    "To make a simple soup for four people, cut two onions into small pieces and cook them slowly "
    "in a little oil until they are soft and almost clear. Add three carrots, two potatoes and a "
    "stick of celery, all cut into cubes, and stir for a few minutes. Pour in enough water to "
    "cover everything, add salt, and let it simmer for half an hour. If you like a thick soup, "
    "take out a cup of the vegetables, mash them with a fork and stir them back in. Serve it hot, "
    "with bread, and with pepper on the table for those who want it.",
    "Dear Ms. Carter, thank you for your letter of last week. We are sorry to hear that the parcel "
    "arrived so late and that the box was damaged. We have asked the carrier to find out what "
    "happened. In the meantime we would like to send you a new lamp at no cost, or to return your "
    "money if you prefer. Please let us know which of the two would suit you better, and whether "
    "the address that we have is still right. You do not have to send back the broken lamp. With "
    "kind regards, the customer service team.",
    "A list is sorted when no element is smaller than the one before it. The simplest way to sort "
    "is to look for the smallest element, put it first, and then do the same with the rest. That "
    "takes a number of comparisons that grows with the square of the length, which is fine for "
    "ten elements and hopeless for a million. A better idea is to cut the list in half, sort both "
    "halves in the same way, and merge them: since each half is in order, the smallest element "
    "that is left always stands at the front of one of them. The work then grows only a little "
    "faster than the length of the list.",
    "The night before the race it had rained, and the track was soft. Nobody spoke much at "
    "breakfast. The youngest of the riders kept looking at the sky, as if the weather could still "
    "be argued with, while the others checked their gear in silence. When the gates opened at "
    "last, the crowd made a sound like a wave. For the first mile they stayed close together. Then "
    "the grey horse moved to the outside, where the ground was firmer, and began to pass the "
    "others, not in a rush, but steadily, the way water finds its way around stones.",
)
